"""What this worker costs, measured as ratios in one run: machines are noisy."""

import os

# A developer's own settings must not reach what is measured. This comes before any other import,
# for some are read then.
for _name in [*os.environ]:
    if _name.startswith(("RUNPOD_", "WORKER_", "S3_", "AWS_", "BUCKET_")):
        del os.environ[_name]
# awscrt is here as a peer; were boto3 to find it, it would also sign for the worker, which comes
# without it.
os.environ["BOTO_DISABLE_CRT"] = "true"
