"""The caller's commands: token, exec, whoami, helper.  They stand on client/ alone, and load click late or not at all."""
