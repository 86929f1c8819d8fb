"""Shipped profiles: NAME.yaml and its tables NAME.TABLE.parquet (see docs/profiles.md)."""
