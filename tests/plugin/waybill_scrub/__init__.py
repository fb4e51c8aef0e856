"""An example of a plug-in: a command and the verb that it needs on hosts (docs/your-own-command.md)."""
