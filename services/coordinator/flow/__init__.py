"""The life of a flow, decided without I/O: events in, effects out. `tree.py` is where to begin.

Nothing here imports more than the standard library, the plan algebra (`coordinator.plan`) and the rows
(`coordinator.rows`).
"""
