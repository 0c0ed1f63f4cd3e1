"""Recipe to Plan: references to edges, fingerprints, resources, estimates, and why a stage is stale. Knows no stage."""
