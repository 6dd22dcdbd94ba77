"""model: gpt, dropout_sites, generate."""
