"""Configuration: keys, YAML files, checks."""
