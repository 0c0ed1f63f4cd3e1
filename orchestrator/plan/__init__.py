"""Recipe to Plan: references to edges, fingerprints, resources, estimates, why a stage is stale. Knows no stage."""
