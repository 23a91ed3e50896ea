"""How long tests wait for what is sure to come. Only a hang is meant to reach it.

A machine that shares its disk stands still for 20 seconds at times, and a test loses nothing by
waiting; what has to happen in time is decided by the worker, not by a clock of the tests.
"""

PATIENCE = 100.0
