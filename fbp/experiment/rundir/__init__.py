"""Every file of one run's folder; no MLflow, no network, no training."""
