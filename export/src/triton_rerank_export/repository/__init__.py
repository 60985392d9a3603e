"""The model repository: configs, versions, settings, and how they are put in place."""
