"""A module in the place of wandb that keeps what it is given, by the run's id."""

import types


class FakeWandb(types.ModuleType):
    """`fail` names a function that raises: init, log or finish."""

    def __init__(self, fail=None):
        super().__init__("wandb")
        self.fail, self.starts, self.runs, self.finished = fail, [], {}, 0

    def init(self, **options):
        self._maybe_fail("init")
        self.starts.append(options)
        history = self.runs.setdefault(options["id"], {})

        def log(values, step):
            self._maybe_fail("log")
            if step > max(history, default=-1):  # as wandb does
                history[step] = dict(values)

        def finish():
            self._maybe_fail("finish")
            self.finished += 1

        return types.SimpleNamespace(log=log, finish=finish)

    def _maybe_fail(self, name):
        if self.fail == name:
            raise RuntimeError(f"no network in {name}")
