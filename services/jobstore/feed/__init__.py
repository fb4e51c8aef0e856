"""What changes, in order of revision, for everybody who watches."""
