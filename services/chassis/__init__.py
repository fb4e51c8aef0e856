"""What every gRPC process of ours stands on: settings, logs, errors, interceptor, servers, channels, clocks and ids.

It knows no domain noun. Business code above it raises `WaybillError`, asks `context.current()` who calls, and is given
its `Clock` and `Ids`; everything else about being a well-behaved process happens here, once.
"""

import os

# gRPC's core would write lines of its own between our log lines, most of them about connections that come and go.
# It reads this once, when it is first imported; who needs them sets it to INFO.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
