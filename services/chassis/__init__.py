"""What every gRPC process of ours stands on: settings, logs, errors, interceptor, servers, channels, clocks and ids.

It knows no domain noun. Business code above it raises `WaybillError`, asks `context.current()` who calls, and is given
its `Clock` and `Ids`; everything else about being a well-behaved process happens here, once.
"""
