"""The pure domain: attribute values, changes, order, lineage, the capture log's model, the fold.

Standard library only; a test checks this.
"""
