"""What of the worker's environment a child sees, and what it is told of its threads and memory."""

import subprocess
import sys

import pytest

from child.environment import child_environment


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


#: Twenty times the same 48 MB, and how many pages all but the first time needed from the kernel.
CHURN = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    [bytearray(12 << 20) for _ in range(4)]
step()
before = faults()
for _ in range(20):
    step()
print(faults() - before)
"""


def test_memory_that_a_step_frees_is_there_for_the_next_one():
    pages_of_one = (48 << 20) // 4096
    ran = subprocess.run(
        [sys.executable, "-c", CHURN],
        env=child_environment({}, {}),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert int(ran.stdout) < 2 * pages_of_one


def test_how_memory_is_kept_may_be_chosen():
    seen = child_environment({"MALLOC_TRIM_THRESHOLD_": "1"}, {"MALLOC_MMAP_THRESHOLD_": "2"})
    assert (seen["MALLOC_TRIM_THRESHOLD_"], seen["MALLOC_MMAP_THRESHOLD_"]) == ("1", "2")
