"""Many runs of one config: what to try, trying it on the cluster, and which did best."""

from t2i_ray.sweep.driver import tune

__all__ = ["tune"]
