"""Everything that goes to the jobstore's journal, and what it tells coordinators."""
