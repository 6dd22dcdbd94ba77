"""Check the annotations of a package at run time: types with beartype, shapes with jaxtyping.

The packages run without jaxtyping: they import it under `if TYPE_CHECKING` only. The finder below
runs these blocks before each module, so that the annotations can be resolved.
"""

import ast
import sys
from importlib.abc import MetaPathFinder

import jaxtyping
from beartype import BeartypeConf, beartype

# An int is a float, as PEP 484 says.
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install_type_checker(package: str) -> None:
    """Check every function of a package that is not yet imported."""
    assert package not in sys.modules, f"{package} is already imported, and so stays unchecked"
    jaxtyping.install_import_hook(package, "type_checking.check_types")
    sys.meta_path.insert(0, _TypeCheckingFinder(package, sys.meta_path[0]))


class _TypeCheckingFinder(MetaPathFinder):
    """Wrap the finder of jaxtyping to run the TYPE_CHECKING blocks of a module first."""

    def __init__(self, package: str, finder):
        self.package, self.finder = package, finder

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        spec = self.finder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _run_type_checking_blocks_first(spec.loader)
        return spec


def _run_type_checking_blocks_first(loader):
    exec_module = loader.exec_module

    def wrapped(module):
        tree = ast.parse(loader.get_data(loader.path))
        for node in tree.body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                code = compile(ast.Module(node.body, []), loader.path, "exec")
                exec(code, vars(module))
        exec_module(module)

    return wrapped
