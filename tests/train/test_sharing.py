"""Processes that make shards of one folder at the same time, of recordings that have changed."""

import hashlib

import pytest

from fastglow.train import making
from fastglow.train import prepare as preparing
from fastglow.train.manifest import PreparedDataset

from .test_prepare_again import NAMES, Killed, contents, run, same, source, write_noise  # noqa: F401


def shard_of(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % 2


@pytest.fixture
def changed(source, tmp_path):  # noqa: F811
    """The recordings: one of each shard has changed since the folder was filled."""
    run(source, tmp_path / "out", shards=2)
    for seed, number in enumerate((0, 1)):
        write_noise(source / f"{next(name for name in NAMES if shard_of(name) == number)}.wav", 100 + seed)
    run(source, tmp_path / "anew", shards=2)
    return source


def once(function):
    """Calls it, but not while it runs or afterwards."""
    left = [function]
    return lambda: left.pop()() if left else None


def check(tmp_path):
    same(contents(tmp_path / "anew"), contents(tmp_path / "out"))
    PreparedDataset.open(tmp_path / "out")


def test_one_is_done_while_another_makes_its_shard(changed, tmp_path, monkeypatch):
    out, reports = tmp_path / "out", []
    other = once(lambda: reports.append(run(changed, out, only=[1])))

    class WithAnother(making.ClipMaker):
        def __call__(self, clip):
            other()
            return super().__call__(clip)

    monkeypatch.setattr(making, "ClipMaker", WithAnother)
    reports.append(run(changed, out, only=[0]))
    assert [report.made for report in reports] == [1, 1]
    check(tmp_path)


@pytest.mark.parametrize("step", ["finished", "publish", "remove_others"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_another_is_done_at_any_moment_of_the_end(changed, tmp_path, monkeypatch, step, when):
    out = tmp_path / "out"
    other = once(lambda: run(changed, out, only=[1]))
    of = making.ShardMaker if step == "finished" else preparing
    original = getattr(of, step)

    def with_another(*arguments):
        if when == "before":
            other()
        result = original(*arguments)
        other()
        return result

    monkeypatch.setattr(of, step, with_another)
    assert run(changed, out, only=[0]).made == 1
    check(tmp_path)


def test_after_a_kill_before_the_old_shards_are_removed_they_do_not_come_back(changed, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(preparing, "remove_others", killed)
        run(changed, out)
    assert len(list(out.glob("*.pcm"))) == 4
    assert run(changed, out, only=[1]).made == 0
    check(tmp_path)
