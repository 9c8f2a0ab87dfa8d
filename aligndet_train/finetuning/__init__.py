"""Fine-tuning and evaluation on boxes with labels: mmengine's Runner, with the paper's recipe as the default."""
