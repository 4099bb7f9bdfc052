"""From a Config to trained parameters, written only through rundir; never imports mlflow."""
