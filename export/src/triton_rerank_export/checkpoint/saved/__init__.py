"""What sentence-transformers saved beside a model: settings, a head of modules, LogitScore with its chat template."""
