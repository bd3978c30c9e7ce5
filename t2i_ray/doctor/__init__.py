"""What a run needs, tried out: from the driver, and from every node of the cluster."""

from t2i_ray.doctor.examine import examine
from t2i_ray.doctor.finding import Finding, State
from t2i_ray.doctor.table import show

__all__ = ["Finding", "State", "examine", "show"]
