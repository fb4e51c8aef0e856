"""The jobstore owns the database: what coordinators decide is written here, and everybody reads it here.

Two faces. *Journal*, for coordinators alone (`service.py`): commits of many flows become one transaction and one
revision (`journal.py`); who may write is kept by leases (`leases.py`). *JobStore*, for readers (`reads.py`): questions
(`queries.py`) and watches (`feed.py`), in order of revision. The process keeps nothing that is not in Postgres, so any
number of them may serve one database; the database may be one of its own (`postgres.py`).
"""
