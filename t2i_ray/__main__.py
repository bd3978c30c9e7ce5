"""``python -m t2i_ray`` is ``t2i-ray``."""

from t2i_ray.cli import main

if __name__ == "__main__":
    main()
