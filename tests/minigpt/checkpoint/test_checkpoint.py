"""Checkpoints: what is read is what was saved, or an error; the last good one outlives anything."""

import errno
import functools
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tiny import CONFIG

from minigpt.checkpoint import manager as checkpoint
from minigpt.checkpoint import manifest
from minigpt.checkpoint.manager import CheckpointWriter
from minigpt.checkpoint.manifest import ARRAYS, MANIFEST, CheckpointError, serialize_manifest
from minigpt.training.train_step import build_train_functions

SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int32(7)}
LIKE = {name: np.asarray(array) for name, array in SMALL.items()}


def save(run_dir, step=1, arrays=SMALL, keep_last=3, **meta):
    with CheckpointWriter(run_dir, keep_last) as writer:
        writer.save(step, arrays, meta)
    return run_dir / "checkpoints" / f"{step:08d}"


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def refused(run_dir, match, **kwargs):
    """Every way of reading refuses, with one line."""
    for call in (
        lambda: checkpoint.read(run_dir, 1, **kwargs),
        lambda: checkpoint.restore(run_dir, LIKE),
        lambda: checkpoint.restore_latest_valid(run_dir, LIKE, lambda messages: None),
    ):
        with pytest.raises(CheckpointError) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=match):
        checkpoint.restore(run_dir, LIKE)


def reseal(folder, change):
    """Change a manifest as someone would who recomputes its checksum."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    change(manifest)
    (folder / MANIFEST).write_bytes(serialize_manifest(manifest))


def replace_arrays(folder, data):
    """Put other bytes in the place of the arrays, with the sums recomputed."""
    (folder / ARRAYS).write_bytes(data)
    file = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(folder, lambda manifest: manifest["files"].update({ARRAYS: file}))


# Round trips.


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = build_train_functions(CONFIG, 11).state
    save(tmp_path, 5, checkpoint.host_arrays(state), val_loss=1.5, more=[1, None])
    again, meta = checkpoint.restore(tmp_path, jax.eval_shape(lambda: state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert meta == {"val_loss": 1.5, "more": [1, None]}
    assert names(tmp_path) == ["00000005"]


@pytest.mark.parametrize("dtype", manifest.DTYPES.values())
def test_any_bits_of_any_dtype_and_shape(tmp_path, dtype):
    rng = np.random.default_rng(0)
    arrays = {}
    for shape in ((), (0,), (3, 0, 2), (5,), (2, 3, 4)):
        raw = rng.integers(0, 2 if dtype == "bool" else 256, (*shape, np.dtype(dtype).itemsize))
        arrays[f"of/{shape}"] = raw.astype(np.uint8).view(dtype).reshape(shape)
    save(tmp_path, arrays=arrays)
    again, _ = checkpoint.read(tmp_path, 1)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert again[name].tobytes() == array.tobytes()


def test_nan_payloads_and_layouts(tmp_path):
    nans = np.array([0x7FC00001, 0xFF812345, 0x80000000], np.uint32).view(np.float32)
    square = np.arange(6.0).reshape(2, 3)
    arrays = {"nan": nans, "transposed": square.T, "strided": square[:, ::2], "big": nans[2:]}
    arrays["big"] = np.array([1.5], ">f4")
    save(tmp_path, arrays=arrays)
    again, _ = checkpoint.read(tmp_path, 1)
    assert again["nan"].tobytes() == nans.tobytes()
    for name in ("transposed", "strided", "big"):
        np.testing.assert_array_equal(again[name], arrays[name])


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.ones(2, np.complex64)}, "'x' of dtype complex64 is not allowed"),
        ({"x": np.array([{}])}, "'x' of dtype object is not allowed"),
        ({"__metadata__": np.ones(2)}, "'__metadata__'"),
    ],
)
def test_what_cannot_be_read_back_is_not_saved(tmp_path, arrays, match):
    with pytest.raises(ValueError, match=match):
        save(tmp_path, arrays=arrays)
    assert names(tmp_path) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep_last=0 is not allowed"):
        CheckpointWriter(tmp_path, 0)
    with pytest.raises(ValueError, match="step=-1 is not allowed"):
        save(tmp_path, -1)
    with pytest.raises(TypeError):
        save(tmp_path, meta={"of": object()})
    with pytest.raises(ValueError, match="same name"):
        checkpoint.host_arrays({"a/b": np.ones(1), "a": {"b": np.ones(1)}})


def test_the_manifest_says_what_it_holds(tmp_path):
    folder = save(tmp_path, val_loss=2.0)
    data = (folder / ARRAYS).read_bytes()
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    assert manifest == {
        "format": 1,
        "step": 1,
        "files": {ARRAYS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        "arrays": {
            "a": {"shape": [2, 3], "dtype": "float32"},
            "b": {"shape": [], "dtype": "int32"},
        },
        "meta": {"val_loss": 2.0},
    }


# Damage: no flipped bit and no cut is ever loaded.


def flips(folder, count, rng):
    """How many random flips are noticed, over both files."""
    files = [folder / ARRAYS, folder / MANIFEST]
    originals = [file.read_bytes() for file in files]
    noticed = 0
    for _ in range(count):
        which = rng.randrange(2)
        damaged = bytearray(originals[which])
        bit = rng.randrange(8 * len(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
        files[which].write_bytes(damaged)
        try:
            checkpoint.read(folder.parent.parent, 1)
        except CheckpointError as error:
            noticed += files[which].name in str(error)
        files[which].write_bytes(originals[which])
    checkpoint.read(folder.parent.parent, 1)
    return noticed


def test_no_flipped_bit_is_loaded(tmp_path):
    folder = save(
        tmp_path,
        arrays=checkpoint.host_arrays(build_train_functions(CONFIG, 11).state),
        val_loss=1.0,
    )
    assert flips(folder, 200, random.Random(0)) == 200


@pytest.mark.torture
def test_no_flipped_bit_of_two_thousand_is_loaded(tmp_path):
    folder = save(
        tmp_path,
        arrays=checkpoint.host_arrays(build_train_functions(CONFIG, 11).state),
        val_loss=1.0,
    )
    assert flips(folder, 2000, random.Random(1)) == 2000


@pytest.mark.torture
def test_no_bit_of_a_small_checkpoint_can_be_flipped(tmp_path):
    """Each one of them, not a sample."""
    folder = save(tmp_path, val_loss=1.0)
    for file in (folder / ARRAYS, folder / MANIFEST):
        original = file.read_bytes()
        for bit in range(8 * len(original)):
            damaged = bytearray(original)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=file.name):
                checkpoint.read(tmp_path, 1)
        file.write_bytes(original)


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_files_cut_grown_zeroed_missing_or_added(tmp_path, name):
    folder = save(tmp_path)
    file = folder / name
    original = file.read_bytes()
    cuts = random.Random(0).sample(range(len(original)), 20)
    zeroed = [b"\0" * len(original), original[:-4] + b"\0" * 4]
    for data in [b"", *(original[:cut] for cut in cuts), *zeroed, original + b"\0"]:
        if data != original:
            file.write_bytes(data)
            refused(tmp_path, name)
    file.unlink()
    refused(tmp_path, f"{name}' is missing")
    file.write_bytes(original)
    (folder / "more.bin").write_bytes(b"")
    refused(tmp_path, "more.bin' is not allowed")
    (folder / "more.bin").unlink()
    checkpoint.restore(tmp_path, LIKE)


def test_a_manifest_that_json_would_mind_less(tmp_path):
    """The same document in other bytes; and documents that are none."""
    folder = save(tmp_path)
    original = (folder / MANIFEST).read_bytes()
    deep = b"[" * 100_000
    for data in (original + b" ", original.replace(b'"meta"', b'"\\u006deta"'), b"[1]", b"1", deep):
        (folder / MANIFEST).write_bytes(data)
        refused(tmp_path, "manifest.json' is damaged")


def test_another_model_is_an_error_that_asks_about_the_config(tmp_path):
    save(tmp_path)
    for like, match in (
        (LIKE | {"c": np.ones(1)}, r"lacks the array 'c'. Was config.toml changed\?"),
        ({"a": LIKE["a"]}, r"has the array 'b', which the model lacks. Was config.toml changed"),
        (LIKE | {"a": np.ones((3, 2), np.float32)}, r"'a' is float32\(2, 3\), but .* needs .*3, 2"),
        (LIKE | {"a": np.ones((2, 3))}, r"'a' is float32\(2, 3\), but the model needs float64"),
    ):
        with pytest.raises(CheckpointError, match=match):
            checkpoint.restore(tmp_path, like)


# What a stranger may try, with every checksum right.


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_an_unknown_format_is_refused(tmp_path, version):
    reseal(save(tmp_path), lambda manifest: manifest.update(format=version))
    refused(tmp_path, f"manifest.json' has format {version!r}, but this version reads format 1")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", "a\\b", "C:x", "", "arrays.pickle", MANIFEST]
)
def test_a_manifest_names_no_other_file(tmp_path, name):
    folder = save(tmp_path)
    (tmp_path / "checkpoints" / "secret").write_bytes((folder / ARRAYS).read_bytes())

    def rename(manifest):
        manifest["files"] = {name: manifest["files"][ARRAYS]}

    reseal(folder, rename)
    refused(tmp_path, re.escape(f"names the file {name!r}; only {ARRAYS} is allowed"))
    reseal(folder, lambda manifest: manifest["files"].update({ARRAYS: {"bytes": 1, "sha256": ""}}))
    refused(tmp_path, re.escape(f"names the file {name!r}; only {ARRAYS} is allowed"))


@pytest.mark.parametrize("part", ["checkpoints", "00000001", ARRAYS, MANIFEST])
def test_symbolic_links_are_refused(tmp_path, part):
    """Even where what they lead to is a good checkpoint."""
    folder = save(tmp_path)
    path = next(
        p for p in (folder.parent, folder, folder / ARRAYS, folder / MANIFEST) if p.name == part
    )
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused(tmp_path, f"{part}' is a symbolic link")
    if part == "checkpoints":
        with pytest.raises(CheckpointError, match="is a symbolic link"):
            CheckpointWriter(tmp_path)


def test_only_plain_files_are_opened(tmp_path):
    folder = save(tmp_path)
    (folder / ARRAYS).unlink()
    os.mkfifo(folder / ARRAYS)  # opening it would wait for ever
    refused(tmp_path, f"{ARRAYS}' is not a regular file")
    (folder / ARRAYS).unlink()
    (folder / ARRAYS).mkdir()
    refused(tmp_path, f"{ARRAYS}' is not a regular file")
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    refused(tmp_path, "00000001' cannot be read")


def test_a_renamed_checkpoint_is_refused(tmp_path):
    folder = save(tmp_path, 2)
    folder.rename(folder.with_name("00000001"))
    refused(tmp_path, "manifest.json' is of step 2")


def spec(manifest, **changes):
    manifest["arrays"]["a"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: spec(m, shape=[2, -3]),
        lambda m: spec(m, shape=[2.0, 3]),
        lambda m: spec(m, shape=[True, 3]),
        lambda m: spec(m, shape="23"),
        lambda m: spec(m, shape=[2**62] * 300),  # so many bytes that Python refuses to print it
        lambda m: spec(m, shape=[10**4200, 10**4200]),
        lambda m: spec(m, dtype="object"),
        lambda m: spec(m, dtype=["float32"]),
        lambda m: spec(m, more=1),
        lambda m: m["arrays"].update(a=3),
        lambda m: m.update(arrays=[]),
        lambda m: m.update(meta=[]),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={}),
        lambda m: m.update(files={ARRAYS: 3}),
        lambda m: m.update(files={ARRAYS: {"bytes": "1", "sha256": ""}}),
        lambda m: m.update(files={ARRAYS: {"bytes": -1, "sha256": ""}}),
        lambda m: m.update(more=1),
        lambda m: m.pop("meta"),
        lambda m: m.pop("step"),
    ],
)
def test_odd_manifests_are_refused(tmp_path, change):
    reseal(save(tmp_path), change)
    refused(tmp_path, "manifest.json'")


def test_sizes_that_disagree_with_shapes_are_refused(tmp_path):
    folder = save(tmp_path)
    original = (folder / ARRAYS).read_bytes()
    header = int.from_bytes(original[:8], "little")
    for length in (0, header - 8, header + 8, 2**40, 2**64 - 1):
        replace_arrays(folder, length.to_bytes(8, "little") + original[8:])
        refused(tmp_path, r"arrays.safetensors' has \d+ bytes by its manifest")
    for data in (original + b"\0", original[:-4]):
        replace_arrays(folder, data)
        refused(tmp_path, r"arrays.safetensors'")
    replace_arrays(folder, original)
    checkpoint.restore(tmp_path, LIKE)


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((3, 2), np.float32), "b": np.zeros((), np.int32)},
        {"a": np.zeros((2, 3), np.int32), "b": np.zeros((), np.int32)},
        {"x": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int32)},
        {"a": np.zeros(7, np.float32)},
    ],
)
def test_the_file_holds_the_arrays_that_the_manifest_says(tmp_path, other):
    folder = save(tmp_path)
    replace_arrays(folder, safetensors.numpy.save(other))
    refused(tmp_path, "arrays.safetensors' does not have the arrays that manifest.json lists")


def test_a_header_that_is_no_json_is_refused(tmp_path):
    folder = save(tmp_path)
    original = (folder / ARRAYS).read_bytes()
    replace_arrays(folder, original.replace(b'{"', b'["', 1))
    refused(tmp_path, "arrays.safetensors' cannot be read")


def test_nothing_over_a_cap_is_read(tmp_path, monkeypatch):
    folder = save(tmp_path)
    opened = []
    content = manifest._read_file

    def spy(path, limit):
        opened.append(path.name)
        return content(path, limit)

    monkeypatch.setattr(manifest, "_read_file", spy)
    checkpoint.read(tmp_path, 1, max_bytes=28)
    assert opened == [MANIFEST, ARRAYS]
    with pytest.raises(CheckpointError, match="28 bytes of arrays, more than max_bytes=27"):
        checkpoint.read(tmp_path, 1, max_bytes=27)
    assert opened == [MANIFEST, ARRAYS, MANIFEST]
    # A header is not what a large file can hide in: nor a file that is larger than it says.
    reseal(folder, lambda m: m["files"][ARRAYS].update(bytes=8 + 28 + manifest.MAX_HEADER + 1))
    refused(tmp_path, "its arrays have 28")
    assert ARRAYS not in opened[2:]


def test_sparse_giants_are_not_read(tmp_path):
    """A terabyte that takes no room on the disk."""
    folder = save(tmp_path)
    for name in (ARRAYS, MANIFEST):
        original = (folder / name).read_bytes()
        os.truncate(folder / name, 2**40)
        refused(tmp_path, rf"{name}' has 1,099,511,627,776 bytes; at most [\d,]+ are allowed")
        (folder / name).write_bytes(original)
    reseal(folder, lambda manifest: spec(manifest, shape=[2**20, 2**18]))
    with pytest.raises(CheckpointError, match="max_bytes=17,179,869,184"):
        checkpoint.read(tmp_path, 1)


PICKLE = """
    import json, hashlib, os, pathlib, pickle, sys
    from minigpt import checkpoint
    from minigpt.checkpoint.manifest import ARRAYS, serialize_manifest
    import numpy as np

    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + sys.argv[2],)

    run_dir = pathlib.Path(sys.argv[1])
    arrays = {"a": np.arange(6, dtype=np.float32)}
    with checkpoint.CheckpointWriter(run_dir) as writer:
        writer.save(1, arrays, {})
    checkpoint.restore(run_dir, arrays)  # so that every import is made
    folder = run_dir / "checkpoints" / "00000001"
    good = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    events, armed = [], False
    watched = ("pickle.", "marshal.", "exec", "compile", "import", "os.system", "subprocess.")

    def hook(event, args):
        if armed and event.startswith(watched):
            events.append(event)

    sys.addaudithook(hook)

    def watch(call):
        global armed
        events.clear()
        armed = True
        try:
            call()
            result = "loaded"
        except ValueError:
            result = "refused"
        armed = False
        return result, sorted(set(events))

    def evil(data, name):
        (folder / name).write_bytes(data)
        if name == ARRAYS:
            manifest = json.loads(good["manifest.json"])
            del manifest["sha256"]
            file = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest["files"] = {name: file}
            (folder / "manifest.json").write_bytes(serialize_manifest(manifest))

    read = lambda: checkpoint.restore(run_dir, arrays)
    whole = lambda: checkpoint.read(run_dir, 1)
    print(json.dumps(watch(read)))
    payload = pickle.dumps(Evil())
    np.save(run_dir / "evil.npy", np.array([Evil()]), allow_pickle=True)
    header = len(good["arrays.safetensors"]) - 24  # the first 8 bytes, and 16 spare
    length = (len(payload) + 8 - 8 - 24).to_bytes(8, "little")
    for data in (payload, (run_dir / "evil.npy").read_bytes(), length + payload):
        for name in good:
            evil(data, name)
            print(json.dumps(watch(read)))
            print(json.dumps(watch(whole)))
            for other, content in good.items():
                (folder / other).write_bytes(content)
    assert not os.path.exists(sys.argv[2])
    print(json.dumps(watch(lambda: pickle.loads(pickle.dumps(Evil)) and None)))
"""


def test_nothing_is_ever_unpickled(tmp_path):
    """An audit hook sees imports, shells and unpickled names; the last try proves that it does."""
    command = [sys.executable, "-c", textwrap.dedent(PICKLE), tmp_path, tmp_path / "pwned"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    first, *tries, control = [json.loads(line) for line in completed.stdout.splitlines()]
    assert first == ["loaded", []]
    assert tries == [["refused", []]] * 12
    assert control == ["loaded", ["pickle.find_class"]]


# Falling back.


def test_resuming_falls_back_to_the_newest_good_one_and_says_so(tmp_path):
    messages = []
    assert checkpoint.restore_latest_valid(tmp_path, LIKE, messages.append) is None
    for step in (1, 2, 3):
        save(tmp_path, step, SMALL | {"b": np.int32(step)}, of=step)
    restored = checkpoint.restore_latest_valid(tmp_path, LIKE, messages.append)
    assert restored is not None
    assert restored[1] == {"of": 3}
    assert messages == []
    (tmp_path / "checkpoints" / "00000003" / ARRAYS).write_bytes(b"nonsense")
    (tmp_path / "checkpoints" / "00000002" / MANIFEST).unlink()
    restored = checkpoint.restore_latest_valid(tmp_path, LIKE, messages.append)
    assert restored is not None
    tree, meta = restored
    assert (int(tree["b"]), meta) == (1, {"of": 1})
    assert [re.sub("'.*/", "'", line) for line in messages] == [
        "skipping the checkpoint of step 3: 'arrays.safetensors' is cut off after 8 bytes.",
        "skipping the checkpoint of step 2: 'manifest.json' is missing.",
        "step 1 is the newest valid checkpoint",
    ]
    shutil.rmtree(tmp_path / "checkpoints" / "00000001")
    with pytest.raises(CheckpointError, match=r"can be restored \(steps 2, 3\)"):
        checkpoint.restore_latest_valid(tmp_path, LIKE, messages.append)


def test_no_checkpoint_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint: no step was saved there"):
        checkpoint.restore(tmp_path, {})
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"no checkpoint for step 4 in .* \(available: 5"):
        checkpoint.read(tmp_path, 4)


def test_a_step_saved_again_replaces_the_bad_one_and_what_came_after(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, of=1)
    (tmp_path / "checkpoints" / "00000002" / ARRAYS).write_bytes(b"")
    save(tmp_path, 2, of=2)
    assert names(tmp_path) == ["00000001", "00000002-2"]
    save(tmp_path, 2, of=3)
    assert names(tmp_path) == ["00000001", "00000002-3"]
    assert checkpoint.list_steps(tmp_path) == [1, 2]
    assert checkpoint.read(tmp_path, 2)[1] == {"of": 3}


# What is kept.


def test_the_newest_and_the_best_are_kept(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=2) as writer:
        for step, loss in enumerate([3.0, 1.0, 2.0, math.nan, 2.5, 4.0], start=1):
            writer.save(step, SMALL, {"val_loss": loss})
    assert checkpoint.list_steps(tmp_path) == [2, 5, 6]
    assert checkpoint.best_step(tmp_path) == 2
    assert names(tmp_path) == ["00000002", "00000005", "00000006"]
    save(tmp_path, 7, keep_last=1, val_loss=0.5)
    assert checkpoint.list_steps(tmp_path) == [7]


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, "low"])
def test_without_a_loss_none_is_the_best(tmp_path, loss):
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=2, val_loss=loss)
    assert checkpoint.list_steps(tmp_path) == [2, 3]
    assert checkpoint.best_step(tmp_path) is None


def test_what_cannot_be_read_neither_counts_nor_is_deleted(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=2)
    (tmp_path / "checkpoints" / "00000003" / MANIFEST).write_bytes(b"")
    save(tmp_path, 4, keep_last=2)
    assert checkpoint.list_steps(tmp_path) == [2, 3, 4]
    for step in (5, 6):
        save(tmp_path, step, keep_last=2)
    assert checkpoint.list_steps(tmp_path) == [3, 5, 6]


# The disk.


class Disk:
    """Counts what is done to the disk, in order, and can fail or stop at any point."""

    def __init__(self, monkeypatch, act=lambda done: None):
        self.done = []

        def wrap(owner, name, show):
            real = getattr(owner, name)

            def wrapped(*args, **kwargs):
                self.done.append(show(*args))
                act(self.done)
                return real(*args, **kwargs)

            monkeypatch.setattr(owner, name, wrapped)

        def shown(path):
            return os.path.basename(os.fspath(path))

        wrap(os, "fsync", lambda fd: f"fsync {shown(os.readlink(f'/proc/self/fd/{fd}'))}")
        wrap(os, "rename", lambda one, other: f"rename {shown(one)} {shown(other)}")
        wrap(os, "mkdir", lambda path, *_: f"mkdir {shown(path)}")
        wrap(checkpoint, "_remove", lambda path: f"remove {shown(path)}")


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")


@needs_proc
def test_the_order_on_the_disk(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    disk = Disk(monkeypatch)
    with CheckpointWriter(run_dir, keep_last=1) as writer:
        writer.save(1, SMALL, {})
        writer.wait()
        assert disk.done == [
            "mkdir checkpoints",
            "fsync run",
            "mkdir .00000001.partial",
            f"fsync {ARRAYS}",
            f"fsync {MANIFEST}",
            "fsync .00000001.partial",
            "rename .00000001.partial 00000001",
            "fsync checkpoints",
        ]
        disk.done.clear()
        writer.save(2, SMALL, {})
        writer.wait()
        assert disk.done[5:] == [
            "fsync checkpoints",
            "rename 00000001 .00000001.pruned",
            "fsync checkpoints",
            "remove .00000001.pruned",
        ]


@needs_proc
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_an_error_anywhere_leaves_the_last_good_one(tmp_path, monkeypatch, code):
    """Each call to the disk fails once; the error is one line and comes at the next call."""
    for step in (1, 2):
        save(tmp_path, step, keep_last=2)
    for at in range(1, 10):
        run_dir = tmp_path / f"copy{at}"
        shutil.copytree(tmp_path / "checkpoints", run_dir / "checkpoints")
        writer = CheckpointWriter(run_dir, keep_last=2)
        with monkeypatch.context() as patch:
            disk = Disk(patch, functools.partial(fail, code, at))
            writer.save(3, SMALL, {})
            with pytest.raises(OSError, match=rf"^.* \(saving step 3; .*{run_dir}.*'$") as error:
                writer.wait()
        assert error.value.errno == code
        assert len(disk.done) == at
        assert not [name for name in names(run_dir) if name.endswith(".partial")]
        assert checkpoint.list_steps(run_dir) in ([1, 2], [1, 2, 3], [2, 3])
        for step in checkpoint.list_steps(run_dir):
            checkpoint.read(run_dir, step)
        writer.save(4, SMALL, {})
        writer.wait()
        assert checkpoint.list_steps(run_dir)[-1] == 4


def fail(code, at, done):
    if len(done) == at:
        raise OSError(code, os.strerror(code))


def test_an_error_surfaces_once_at_the_next_call(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fsync(descriptor):
        raise full

    writer, other = CheckpointWriter(tmp_path), CheckpointWriter(tmp_path)
    for call in (writer.wait, lambda: writer.save(2, SMALL, {})):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            writer.save(1, SMALL, {})
            with pytest.raises(OSError, match=r"No space left .*arrays.safetensors'$"):
                call()
        writer.wait()
        assert names(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"), other:
            other.save(1, SMALL, {})
    with pytest.raises(KeyError) as error, monkeypatch.context() as patch, writer:  # noqa: PT012
        patch.setattr(os, "fsync", fsync)
        writer.save(1, SMALL, {})
        raise KeyError
    assert "No space left" in error.value.__notes__[0]


LIMITED = """
    import pathlib, resource, sys
    import numpy as np
    from minigpt.checkpoint import CheckpointWriter
    with CheckpointWriter(pathlib.Path(sys.argv[1])) as writer:
        writer.save(1, {"a": np.ones(1000)}, {})
        writer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        writer.save(2, {"a": np.ones(100_000)}, {})
        try:
            writer.wait()
        except OSError as error:
            print(error)
        writer.save(3, {"a": np.ones(1000)}, {})
"""


def test_a_real_limit_in_the_middle_of_a_file(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), tmp_path]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert re.fullmatch(
        r".*File too large \(saving step 2; .*arrays.safetensors'\n", completed.stdout
    )
    assert names(tmp_path) == ["00000001", "00000003"]
    assert checkpoint.read(tmp_path, 1)[0]["a"].shape == (1000,)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_that_may_not_be_written(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints").chmod(0o500)
    with pytest.raises(PermissionError, match=r"saving step 2.*partial'$"):
        save(tmp_path, 2)
    (tmp_path / "checkpoints").chmod(0o700)
    assert names(tmp_path) == ["00000001"]


def test_no_folder_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/checkpoints"):
        CheckpointWriter(tmp_path / "nowhere")
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(FileExistsError, match="checkpoints"):
        CheckpointWriter(tmp_path)


# While training goes on.


def test_save_returns_before_the_file_is_on_disk_and_the_next_one_waits(tmp_path, monkeypatch):
    go, real, started = threading.Event(), os.fsync, threading.Event()

    def fsync(descriptor):
        started.set()
        assert go.wait(60)
        real(descriptor)

    writer = CheckpointWriter(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    writer.save(1, SMALL, {})
    assert started.wait(60)
    assert checkpoint.list_steps(tmp_path) == []
    second = threading.Thread(target=lambda: writer.save(2, SMALL, {}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go.set()
    second.join(60)
    assert not second.is_alive()
    assert 1 in checkpoint.list_steps(tmp_path)
    writer.wait()
    assert checkpoint.list_steps(tmp_path) == [1, 2]


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path):
    go, writer = threading.Event(), CheckpointWriter(tmp_path)
    writer._thread.submit(go.wait, 60)  # nothing is done in the background until then
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    state, array, meta = jnp.zeros(100_000), np.zeros(3), {"list": [1]}
    writer.save(1, checkpoint.host_arrays({"state": state}) | {"array": array}, meta)
    pointer = state.unsafe_buffer_pointer()
    state = step(state)
    array[:] = 5
    meta["list"].append(2)
    assert state.unsafe_buffer_pointer() == pointer, "the buffer was not donated"
    go.set()
    writer.wait()
    arrays, meta = checkpoint.read(tmp_path, 1)
    assert not arrays["state"].any()
    assert not arrays["array"].any()
    assert meta == {"list": [1]}


# Kills. One process imports everything and forks a child for each.

KILLS = """
    import os, pathlib, random, signal, sys, time
    import numpy as np
    from minigpt import checkpoint

    run_dir, count, how = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rng = random.Random(0)

    def child(kill_at):
        calls = 0
        def stopping(real):
            def wrapped(*args, **kwargs):
                nonlocal calls
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                return real(*args, **kwargs)
            return wrapped
        writer = checkpoint.CheckpointWriter(run_dir, keep_last=2)
        first = (checkpoint.list_steps(run_dir) or [0])[-1] + 1
        os.write(pipe, b".")
        for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
            setattr(os, name, stopping(getattr(os, name)))
        pathlib.Path.open = stopping(pathlib.Path.open)
        for step in range(first, first + 1000):
            again = step - rng.randrange(2)  # sometimes a step that is there
            writer.save(again, {"step": np.full(200_000, again)}, {"val_loss": rng.random()})

    before = 0
    for n in range(count):
        begun, pipe = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(n % 40 if how == "calls" else -1)
            finally:
                os._exit(1)
        os.read(begun, 1)
        if how == "time":
            time.sleep(rng.random() * 0.1)
            os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        os.close(begun), os.close(pipe)
        rng.random()  # so that the next child, a copy, draws others
        steps = checkpoint.list_steps(run_dir)
        for step in steps:
            arrays, _ = checkpoint.read(run_dir, step)
            assert (arrays["step"] == step).all()
        assert max(steps, default=0) >= before, (before, steps)
        before = max(steps, default=0)
        root = run_dir / "checkpoints"
        left = sum(path.name.startswith(".") for path in root.iterdir())
        checkpoint.CheckpointWriter(run_dir)
        assert not [path for path in root.iterdir() if path.name.startswith(".")]
        print(before, left)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("how", "count"),
    [
        ("time", 10),
        ("calls", 40),
        pytest.param("time", 300, marks=pytest.mark.torture),
        pytest.param("calls", 400, marks=pytest.mark.torture),
    ],
)
def test_a_killed_run_leaves_good_checkpoints_only(tmp_path, how, count):
    command = [sys.executable, "-c", textwrap.dedent(KILLS), tmp_path, str(count), how]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    lines = [line.split() for line in completed.stdout.splitlines()]
    assert len(lines) == count
    assert any(int(left) for _, left in lines), "no kill came in the middle of a save"


def test_leftovers_are_removed_and_other_files_are_not(tmp_path):
    root = save(tmp_path).parent
    for name in (".00000002.partial", ".00000001-2.pruned", ".other", "notes", "0002"):
        (root / name).mkdir()
        (root / name / "x").write_bytes(b"x")
    (root / ".00000003.partial").symlink_to(tmp_path)
    CheckpointWriter(tmp_path)
    assert names(tmp_path) == [".other", "00000001", "0002", "notes"]
    assert checkpoint.list_steps(tmp_path) == [1]
