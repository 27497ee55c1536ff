"""The units that may be retried: the @task twin of every step, one module for each module of steps, and the `run` that looks them up."""
