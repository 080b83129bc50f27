"""The VAR family: transformer, tokenizer, teacher."""
