"""data: text, tokenizer, dataset, batches."""
