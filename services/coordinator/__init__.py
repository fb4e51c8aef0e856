"""The coordinator runs commands: it plans them, records what it will do, has hosts do it, and records what came of it.

Callers meet it in `service.py`. A flow (one submitted command and all that it spawns) is a pure state machine
(`flow/`, over the plans of `plan.py`) inside a thin shell (`engine/`), which reaches out by `hosts/` and `journal/` and
is told what is seen by `monitor/`. It owns no data: all that it knows is in the jobstore, and any other coordinator can
take its flows up again (`recovery/`). What it is asked to do is said in `commands/`.
"""
