"""The truth about processes: records, who may write them, and the objects beside them."""
