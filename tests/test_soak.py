"""The soak, at its smallest: `make soak` is the real one."""

from tests import soak


def test_a_few_processes_under_random_misfortune_keep_every_promise(capsys):
    assert soak.main(["--processes", "12", "--workers", "2", "--seed", "2"]) == 0
    assert "\n0 violations\n" in capsys.readouterr().out
