"""The host agent: one per host, it stands between the coordinators and what the host can do.

It accepts tasks and short calls under ids that the coordinator chose, writes every fact down before it acts on it or
tells it (`ledger`), runs tasks to an end through stops, failures and its own death (`runner`, `pursuit`), and streams
what becomes of them and what it sees of its VMs. What the work is, is a driver's affair (`drivers`).
"""
