"""Kernels with and without Landlock, by which a program is held to its folder (`child.confine`)."""

import pytest

from child.confine import can_confine

needs_landlock = pytest.mark.skipif(
    not can_confine(), reason="this kernel cannot confine programs (it takes 6.2 with Landlock)"
)
