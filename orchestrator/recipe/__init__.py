"""YAML to Recipe: positions, overrides, `extends`, `matrix`, and errors with file and line. Knows no stage."""
