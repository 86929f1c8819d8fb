"""Triton code of the calibration suite; imported by the kernel that runs it, never before."""
