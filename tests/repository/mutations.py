"""Break each guard on purpose, in a copy of the repository, and require `make test` to notice.

    python tests/repository/mutations.py [NAME ...] [--write]

A mutation replaces one piece of one file and names the tests of `make test` that should fail for
it; only these are run. `--write` puts the table of which test noticed what into CONTRIBUTING.md.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from rich.progress import track

ROOT = pathlib.Path(__file__).parent.parent.parent
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass(frozen=True)
class Mutation:
    """One guard, how it is broken, and where that must be noticed."""

    name: str
    path: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "the key's fold",
        "dropout_jax/random/_masks.py",
        "FOLD = 0x64726F70",
        "FOLD = 0x64726F71",
        "tests/dropout_jax/random/test_masks.py",
    ),
    Mutation(
        "the counter",
        "dropout_jax/random/_masks.py",
        "column * PAIRS + jnp.uint32(pair)",
        "column + jnp.uint32(pair)",
        "tests/dropout_jax/random/test_masks.py",
    ),
    Mutation(
        "the threshold",
        "dropout_jax/random/_masks.py",
        "(1 - rate) * ONE, ONE)",
        "jnp.rint((1 - rate) * 65536) * 256, ONE)",
        "tests/dropout_jax/random/test_masks.py",
    ),
    Mutation(
        "the borrowed bits",
        "dropout_jax/random/_masks.py",
        "_rotate_right(plane, BORROWED - bit)",
        "_rotate_right(plane, BORROWED - bit + 1)",
        "tests/dropout_jax/random/test_masks.py",
    ),
    Mutation(
        "the packed axis",
        "dropout_jax/random/_packing.py",
        "if len(shape) > 2 else []",
        "if len(shape) > 1 else []",
        "tests/dropout_jax/random/test_masks.py",
    ),
    Mutation(
        "the scale",
        "dropout_jax/ops/_apply.py",
        "inverse = 1 / jnp.where(share > 0, share, 1)",
        "inverse = 1.00001 / jnp.where(share > 0, share, 1)",
        "tests/dropout_jax/ops/test_apply.py",
    ),
    Mutation(
        "the residual: one bit an element",
        "dropout_jax/ops/_apply.py",
        "    @functools.partial(jax.checkpoint, prevent_cse=False)\n",
        "",
        "tests/dropout_jax/ops/test_every_op.py",
    ),
    Mutation(
        "causal blocks that are skipped",
        "dropout_jax/attention/_inputs.py",
        "high = min(keys, last_row + right + 1)",
        "high = min(keys, last_row + right)",
        "tests/dropout_jax/attention/test_dot_product_attention.py",
    ),
    Mutation(
        "the log-sum-exp",
        "dropout_jax/attention/_blockwise.py",
        "top + jnp.log(total)",
        "top + jnp.log1p(total)",
        "tests/dropout_jax/attention/test_dot_product_attention.py",
    ),
    Mutation(
        "grouped-query attention's grouping",
        "dropout_jax/attention/_naive.py",
        "query.reshape(batch, queries, key_heads, heads // key_heads, dim)",
        "query.reshape(batch, queries, heads // key_heads, key_heads, dim).swapaxes(2, 3)",
        "tests/dropout_jax/attention/test_dot_product_attention.py",
    ),
    Mutation(
        "rows of a part of a batch",
        "dropout_jax/random/_masks.py",
        "return row + rows_before, column",
        "return row, column",
        "tests/dropout_jax/random/test_masks.py",
    ),
    Mutation(
        "the step in the dropout key",
        "minigpt/training/train_step.py",
        'fold(key, "dropout", state.step)',
        'fold(key, "dropout")',
        "tests/minigpt/training/test_train_step.py",
    ),
    Mutation(
        "dropout off in evaluation",
        "minigpt/training/train_step.py",
        "return token_losses(graph, params, batch, None)",
        "return token_losses(graph, params, batch, jax.random.key(0))",
        "tests/minigpt/training/test_train_step.py",
    ),
    Mutation(
        "the site in the dropout key",
        "minigpt/model/dropout_sites.py",
        "key=fold(self.key, *path)",
        "key=self.key",
        "tests/minigpt/model/test_gpt.py",
    ),
    Mutation(
        "the order of the batches",
        "minigpt/data/batches.py",
        "counter=[0, step, 0, 0]",
        "counter=[0, step // 2, 0, 0]",
        "tests/minigpt/data/test_batches.py",
    ),
    Mutation(
        "the manifest's checksum",
        "minigpt/checkpoint/manifest.py",
        'is_intact = manifest.pop("sha256") and serialize_manifest(manifest) == content',
        'is_intact = manifest.pop("sha256")',
        "tests/minigpt/checkpoint/test_checkpoint.py",
    ),
    Mutation(
        "the checksum of the arrays",
        "minigpt/checkpoint/manifest.py",
        'hashlib.sha256(content).hexdigest() == file["sha256"],',
        'bool(file["sha256"]),',
        "tests/minigpt/checkpoint/test_checkpoint.py",
    ),
    Mutation(
        "the rename that commits",
        "minigpt/atomic_write.py",
        'partial = path.with_name(f".{path.name}.partial")',
        "partial = path",
        "tests/minigpt/checkpoint/test_checkpoint.py",
    ),
    Mutation(
        "the flush before the rename",
        "minigpt/atomic_write.py",
        "        fsync_dir(partial)\n",
        "",
        "tests/minigpt/checkpoint/test_checkpoint.py",
    ),
    Mutation(
        "the best checkpoint that is kept",
        "minigpt/checkpoint/manager.py",
        "keep = {*list(losses)[-keep_last:], _best(losses)}",
        "keep = {*list(losses)[-keep_last:]}",
        "tests/minigpt/checkpoint/test_checkpoint.py",
    ),
    Mutation(
        "the resume's CRC",
        "minigpt/run/metrics.py",
        "elif crc32 not in (None, self.crc32):",
        "elif False:",
        "tests/minigpt/training/test_failures.py",
    ),
    Mutation(
        "the text's hash",
        "minigpt/run/directory.py",
        "if (self.data_sha256, self.tokenizer) == (sha256, tokenizer):",
        "if True:",
        "tests/minigpt/training/test_failures.py",
    ),
    Mutation(
        "settings that must not change",
        "minigpt/run/open.py",
        "if name not in MAY_CHANGE and saved_values[name] != values[name]",
        "if False",
        "tests/minigpt/training/test_failures.py",
    ),
    Mutation(
        "the lock",
        "minigpt/run/open.py",
        "        lock.acquire()\n",
        "        pass\n",
        "tests/minigpt/training/test_failures.py",
    ),
    Mutation(
        "the tokenizer's part of the cache's name",
        "minigpt/data/cache.py",
        'kind = f"{kind}-{hashlib.sha256(tokenizer.alphabet.encode()).hexdigest()[:16]}"',
        "pass",
        "tests/minigpt/data/test_dataset.py",
    ),
    Mutation(
        "the mesh's row offset",
        "minigpt/training/train_step.py",
        "row_offsets = jnp.arange(count, dtype=jnp.uint32) * rows",
        "row_offsets = jnp.zeros(count, jnp.uint32)",
        "tests/minigpt/training/test_step_options.py",
    ),
    Mutation(
        "blocks of keys of whole lanes of a TPU",
        "dropout_jax/attention/_mosaic_tpu.py",
        "columns = _choose_block(keys, LANES)",
        "columns = _choose_block(keys, 4)",
        "tests/dropout_jax/attention/test_mosaic_tpu.py",
    ),
    Mutation(
        "the kernel of the platform that is lowered for",
        "dropout_jax/attention/_kernel.py",
        "return lax.platform_dependent(*arrays, **branches)",
        "return branches[jax.default_backend()](*arrays)",
        "tests/dropout_jax/attention/test_kernel.py",
    ),
    Mutation(
        "masks that every device makes where it is",
        "dropout_jax/ops/_apply.py",
        "    params = random.mask_params(key, rate)\n"
        "    words = random.draw_packed_mask(params, mask_shape, row_offset, lowest=lowest)\n",
        "    params = random.mask_params(key, rate)\n"
        "    words = random.draw_packed_mask(params, mask_shape, row_offset, lowest=lowest)\n"
        '    if "data" in jax.sharding.get_abstract_mesh().axis_names:\n'
        '        for axes in (("data", "fsdp"), None):\n'
        "            spec = jax.sharding.PartitionSpec(axes)\n"
        "            words = lax.with_sharding_constraint(words, spec)\n",
        "tests/minigpt/distributed/test_mesh.py",
    ),
    Mutation(
        "activations that XLA need not replicate",
        "minigpt/model/gpt.py",
        "return constrain_replicated(jnp.asarray(table.embedding[...], table.dtype))",
        "return jnp.asarray(table.embedding[...], table.dtype)",
        "tests/minigpt/distributed/test_rematerialization.py",
    ),
    Mutation(
        "the loss on answers only",
        "minigpt/training/train_step.py",
        "losses * part.weights if isinstance(part, AnswerBatch) else losses",
        "losses",
        "tests/minigpt/training/test_instruction_tuning.py",
    ),
    Mutation(
        "the tokens that are answers",
        "minigpt/data/answers.py",
        "(begins < last) & (ends > first)",
        "(begins < last) & (ends >= first)",
        "tests/minigpt/data/test_chat_template.py",
    ),
    Mutation(
        "NaN that stops a run",
        "minigpt/training/nan_guard.py",
        "if not math.isfinite(step_metrics.get(name, 0.0)):",
        "if False:",
        "tests/minigpt/tasks/test_replay.py",
    ),
]


def copy_repository(folder):
    """A copy of what git tracks or would add, with this environment and its compiled programs."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (ROOT / ".jax_cache").mkdir(exist_ok=True)
    (folder / ".jax_cache").symlink_to(ROOT / ".jax_cache")


def run_tests(folder, tests):
    """The exit code of pytest, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*command, *tests.split()], cwd=folder, env=environment, capture_output=True, text=True
    )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else None, done.stdout


def apply(mutation, folder):
    """Break the guard; returns a function that mends it."""
    path = folder / mutation.path
    text = path.read_text()
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.path} must hold {mutation.old!r} exactly once.")
    path.write_text(text.replace(mutation.old, mutation.new))
    return lambda: path.write_text(text)


def noticed_by(mutations, folder):
    """For each mutation the first test that failed; None where none did."""
    results = {}
    for mutation in track(mutations, "mutants"):
        mend = apply(mutation, folder)
        code, failed, output = run_tests(folder, mutation.tests)
        mend()
        if code and not failed:  # no test failed, pytest itself did
            sys.exit(f"{mutation.name}: pytest ended with {code}:\n{output[-2000:]}")
        results[mutation] = failed
        print(f"{mutation.name}: {failed or 'NOT NOTICED'}", flush=True)
    return results


def write_table(results):
    """Put the table into CONTRIBUTING.md, between its two marks."""
    rows = ["| guard | file | noticed by |", "|---|---|---|"]
    for mutation, failed in results.items():
        test = re.sub(r"\[.*", "", failed).replace("::", " `", 1) + "`"
        rows.append(f"| {mutation.name} | {mutation.path} | {test} |")
    path = ROOT / "CONTRIBUTING.md"
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{chr(10).join(rows)}\n{END}{rest.partition(END)[2]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations by name; all without names")
    parser.add_argument("--write", action="store_true", help="write the table")
    args = parser.parse_args()
    chosen = [each for each in MUTATIONS if not args.names or each.name in args.names]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy_repository(folder)
        tests = " ".join(sorted({test for each in chosen for test in each.tests.split()}))
        code, failed, output = run_tests(folder, tests)
        if code:
            sys.exit(f"without a mutation {failed} fails:\n{output[-2000:]}")
        results = noticed_by(chosen, folder)
    missed = [mutation.name for mutation, failed in results.items() if failed is None]
    if missed:
        sys.exit(f"`make test` does not notice: {', '.join(missed)}")
    if args.write:
        write_table(results)


if __name__ == "__main__":
    main()
