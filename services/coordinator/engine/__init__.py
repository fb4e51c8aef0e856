"""The shell around flows: one actor each, which tells its tree what happens and does what that asks for."""
