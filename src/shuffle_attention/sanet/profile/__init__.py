"""Costs of models, compared with each other and with published metrics."""
