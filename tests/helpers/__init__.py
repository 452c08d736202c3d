"""What several tests share: cases, tolerances, reference computations, stand-ins, scripts that run as processes."""
