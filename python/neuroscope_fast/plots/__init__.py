"""Pictures of what the analyses found, one module for each analysis. matplotlib is loaded when a picture is made."""
