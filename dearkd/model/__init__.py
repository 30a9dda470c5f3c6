"""Networks and losses in torch and timm. No module here reads or writes files of a run."""
