"""What of the worker's environment a child sees, and what it is told about its threads."""

import pytest

from jobs.child_environment import child_environment


def test_secrets_stay_with_the_worker():
    ours = {"PATH": "/bin", "BUCKET_SECRET_ACCESS_KEY": "s", "NVIDIA_API_KEY": "k", "LC_ALL": "C"}
    seen = child_environment(ours, {})
    assert {name for name in seen if name in ours} == {"PATH", "LC_ALL"}


def test_what_the_operator_names_is_passed_on():
    assert child_environment({}, {"WANDB_MODE": "offline"})["WANDB_MODE"] == "offline"


def test_threads_that_wait_spin_a_while_and_then_sleep():
    seen = child_environment({}, {})
    assert (seen["OMP_WAIT_POLICY"], seen["GOMP_SPINCOUNT"]) == ("PASSIVE", "6000")


@pytest.mark.parametrize("policy", ["ACTIVE", "PASSIVE"])
@pytest.mark.parametrize("named", [False, True])
def test_a_policy_that_somebody_chose_is_not_overruled(policy, named):
    chosen = {"OMP_WAIT_POLICY": policy}
    seen = child_environment(*(({}, chosen) if named else (chosen, {})))
    assert seen["OMP_WAIT_POLICY"] == policy
    assert "GOMP_SPINCOUNT" not in seen
