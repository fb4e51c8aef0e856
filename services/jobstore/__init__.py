"""The jobstore owns the database: what coordinators decide is written here, and everybody reads it here.

Two faces. *Journal*, for coordinators alone (`service.py`): commits of many flows become one transaction and one
revision (`journal/`). *JobStore*, for readers (`reads.py`): questions (`queries/`) and watches (`feed/`), in order of
revision, with one language for filters (`search/`). The process keeps nothing that is not in Postgres, so any number of
them may serve one database; the database may be one of its own (`postgres/`).
"""
