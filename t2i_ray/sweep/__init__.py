"""Many runs of one config: what to try, trying it on the cluster, and which did best."""

from t2i_ray.sweep.driver import stored, tune

__all__ = ["stored", "tune"]
