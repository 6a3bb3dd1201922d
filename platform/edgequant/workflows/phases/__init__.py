"""What `pipeline` is made of: the phases of one model, what is done already, the orders of adapting and quantising."""
