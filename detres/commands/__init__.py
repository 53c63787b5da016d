"""What the commands do once their arguments are read, a file each; `detres.cli` reads them."""
