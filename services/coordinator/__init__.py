"""The coordinator runs commands: it plans them, records what it will do, has hosts do it, and records what came of it.

Callers meet it in `service.py`. A flow (one submitted command and all that it spawns) is a pure state machine
(`flow.py`, over the plans of `plan.py`) inside a thin shell (`engine.py`). It owns no data: all that it knows is in
the jobstore, written through `journal.py`, and any other coordinator can take its flows up again (`recovery.py`).
"""
