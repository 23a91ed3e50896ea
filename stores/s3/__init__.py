"""An S3 bucket as a `storage.Store`.

`store` decides what follows from a failed or unclear request, `bucket` makes the requests, and
`errors` types their failures. `client` sets boto3 up; `signed_calls` sends the four requests that
carry bytes or long lists with less CPU time. `files` moves files and streams, `links` makes links
and joins what callers sent by them, `metering` counts, `headers` reads answers, and `threads` keeps
blocking calls off the event loop.
"""

import os

# If awscrt is installed, boto3 signs with it, by other rules. boto3 looks when it is imported.
os.environ.setdefault("BOTO_DISABLE_CRT", "true")
