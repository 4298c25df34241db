"""The lm-eval side: model classes, two passes, plug-in, data and model fetch, sandbox, command line."""
