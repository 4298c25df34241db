"""Eight worked examples in GSM8K's notation, our own, for few-shot prompts where its train split cannot be had."""

WORKED: list[dict[str, str]] = [
    {
        "question": "A baker fills 6 trays with 15 rolls each. By noon 52 rolls are sold. How many rolls are left?",
        "answer": "The baker makes 6*15 = <<6*15=90>>90 rolls.\nAfter noon 90-52 = <<90-52=38>>38 rolls are left.\n#### 38",
    },
    {
        "question": "Ines reads 12 pages on each weekday and twice as many on each day of the weekend. "
        "How many pages does she read in a week?",
        "answer": "On a weekend day she reads 12*2 = <<12*2=24>>24 pages.\nOn weekdays she reads 5*12 = <<5*12=60>>60 pages.\n"
        "On the weekend she reads 2*24 = <<2*24=48>>48 pages.\nIn a week she reads 60+48 = <<60+48=108>>108 pages.\n#### 108",
    },
    {
        "question": "A bus ticket costs $3 and a day pass costs $8. Omar rides the bus four times. "
        "How much does he save with the day pass?",
        "answer": "Four tickets cost 4*3 = $<<4*3=12>>12.\nThe day pass saves 12-8 = $<<12-8=4>>4.\n#### 4",
    },
    {
        "question": "A rope of 84 meters is cut into pieces of 7 meters. A third of the pieces is given away. How many pieces remain?",
        "answer": "There are 84/7 = <<84/7=12>>12 pieces.\n"
        "Given away are 12/3 = <<12/3=4>>4 pieces.\n12-4 = <<12-4=8>>8 pieces remain.\n#### 8",
    },
    {
        "question": "Tom is 9 years old. His aunt is four times as old as he is now. How old will she be in 5 years?",
        "answer": "The aunt is 4*9 = <<4*9=36>>36 years old.\nIn 5 years she will be 36+5 = <<36+5=41>>41.\n#### 41",
    },
    {
        "question": "A shop lowers the price of a $250 bicycle by 20%. A helmet costs $35. "
        "How much do both cost together after the discount?",
        "answer": "The discount is 250*20/100 = $<<250*20/100=50>>50.\nThe bicycle then costs 250-50 = $<<250-50=200>>200.\n"
        "Together they cost 200+35 = $<<200+35=235>>235.\n#### 235",
    },
    {
        "question": "Three friends pick apples. Mia picks 14, Leo picks 6 more than Mia, and Ada picks half as many as Leo. "
        "How many apples do they pick in all?",
        "answer": "Leo picks 14+6 = <<14+6=20>>20 apples.\nAda picks 20/2 = <<20/2=10>>10 apples.\n"
        "In all they pick 14+20+10 = <<14+20+10=44>>44 apples.\n#### 44",
    },
    {
        "question": "A pump moves 40 liters a minute. A pool of 3600 liters is already a third full. "
        "How many minutes does the pump need to fill the rest?",
        "answer": "The pool already has 3600/3 = <<3600/3=1200>>1200 liters.\nMissing are 3600-1200 = <<3600-1200=2400>>2400 liters.\n"
        "The pump needs 2400/40 = <<2400/40=60>>60 minutes.\n#### 60",
    },
]
